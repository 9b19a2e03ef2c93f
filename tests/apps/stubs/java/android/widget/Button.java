// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.widget;

import android.content.Context;

public class Button extends TextView {
  public Button(Context context) {
    super(context);
  }
}
