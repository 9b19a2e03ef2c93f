// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.widget;

import android.content.Context;
import android.view.View;

public class TextView extends View {
  public TextView(Context context) {
    super(context);
  }

  public native CharSequence getText();

  public final native void setText(CharSequence text);
}
