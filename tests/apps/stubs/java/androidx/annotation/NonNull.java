// The annotation by which AndroidX says what is never null; Kotlin's compiler knows it by this name.
package androidx.annotation;

import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;

@Retention(RetentionPolicy.CLASS)
public @interface NonNull {}
